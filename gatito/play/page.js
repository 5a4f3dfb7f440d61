"use strict";

const at = (id) => document.getElementById(id);
const token = location.hash.slice(1);
const socket = new WebSocket(`ws://${location.host}/socket?token=${encodeURIComponent(token)}`);

let greeting = null; // what the checkpoint knows
let demonstrations = [];
let stage = null; // what is played: task, controls and instruction
let wanted = null; // the task that is chosen; the list may show others
let controlled = false;
let going = false;
let over = false; // whether the episode is
let instruction = null; // in place of the environment's own
let seeds = null; // timer of the next seed
let awaited = 0; // episodes that were asked for and have not begun: what is heard meanwhile is of one that was left
let figures = [];

function send(request) {
  if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(request));
}

function make(kind, properties = {}, ...children) {
  const element = Object.assign(document.createElement(kind), properties);
  element.append(...children);
  return element;
}

function number(x) {
  return Math.abs(x) >= 1000 ? x.toFixed(0) : String(Number(x.toPrecision(4)));
}

function complain(text) {
  at("error").textContent = text;
  at("error").hidden = !text;
}

// --- the episode -------------------------------------------------------------------------------------------------

function begin(seed, hold = controlled) {
  clearTimeout(seeds);
  complain("");
  at("seed").value = seed;
  const chosen = at("prompt").value === "" ? null : Number(at("prompt").value);
  const beside = at("beside").checked && chosen !== null;
  awaited += 1;
  send({
    do: "begin", task: wanted, seed, part: at("part").value, instruction, controlled: hold,
    prompts: hold ? [null] : beside ? [null, chosen] : [chosen],
  });
}

function again(ahead = 0, hold = controlled) {
  if (choosing !== null && at("task").value) { // whoever chose a task a moment ago means that one
    takeUp();
    return begin(0, hold);
  }
  const seed = Math.trunc(Number(at("seed").value)) + ahead;
  begin(Number.isSafeInteger(seed) && seed >= 0 ? seed : 0, hold);
}

function run(start) {
  if (start && over) return again();
  going = start && !controlled;
  send({ do: "run", going, speed: Number(at("speed").value) });
  at("go").firstChild.textContent = going ? "pause " : "play ";
  at("go").classList.toggle("strong", !controlled);
}

function began(message) {
  awaited -= 1;
  stage = message;
  over = false;
  controlled = message.controlled;
  at("task-name").textContent = `${message.task}, seed ${message.seed}`;
  at("instructing").hidden = message.instruction === null;
  figures = message.prompts.map((timesteps) => {
    const what = controlled ? "you act" : timesteps === null ? "no prompt" : `prompted with ${timesteps} timesteps`;
    const image = make("img", { alt: `${message.task}: ${what}` });
    const said = make("span");
    const note = make("small");
    const figure = make("figure", {}, image, make("figcaption", {}, make("b", { textContent: what }), said, note));
    return { figure, image, said, note };
  });
  at("panes").replaceChildren(...figures.map(({ figure }) => figure));
  at("looked").replaceChildren();
  drawPad();
  for (const id of ["go", "step"]) at(id).disabled = controlled;
  at("look").disabled = true; // there is nothing to look at before it acts
  if (!awaited) run(true);
}

function show(moment) {
  const { image, said, note } = figures[moment.pane];
  image.src = moment.frame;
  if (moment.pane === figures.length - 1) at("look").disabled = controlled || moment.timestep === 0;
  const action = moment.action === null ? "" : `, action ${named(moment.action)}`;
  said.textContent = `step ${moment.timestep}, return ${number(moment.return)}${action} `;
  if (moment.over) {
    const score = moment.score === null ? "" : `, score ${moment.score.toFixed(2)}`;
    said.append(make("span", { className: "over", textContent: `over: return ${number(moment.return)}${score}` }));
  }
  note.textContent = moment.drawn ? "this simulator cannot render here: the observation is drawn" : "";
  at("instruction-read").hidden = moment.text === null;
  at("instruction-read").textContent = moment.text === null ? "" : `“${moment.text}”`;
}

function named(values) {
  const [only] = stage.controls;
  if (stage.controls.length === 1 && only.names) return only.names[values[0] - only.start];
  return values.map(number).join(", ");
}

function ended() {
  if (awaited) return;
  over = true;
  run(false);
  if (!controlled && at("endless").checked) seeds = setTimeout(() => again(1), 1200);
}

// --- the controls ------------------------------------------------------------------------------------------------

function drawPad() {
  const pad = at("pad");
  pad.hidden = !controlled;
  at("finish").hidden = !controlled;
  at("control").setAttribute("aria-pressed", String(controlled));
  at("control").firstChild.textContent = controlled ? "give the controls back " : "take the controls ";
  if (!controlled) return pad.replaceChildren();
  const [only] = stage.controls;
  if (stage.controls.length === 1 && only.names) {
    const buttons = only.names.map((name, i) => {
      const button = make("button", { type: "button", textContent: name });
      if (only.keys[i]) button.append(make("kbd", { textContent: only.keys[i].replace("Arrow", "") }));
      button.addEventListener("click", () => send({ do: "act", values: [only.start + i] }));
      return button;
    });
    const words = "Each press is one timestep. The episode is kept as a demonstration when it ends.";
    pad.replaceChildren(...buttons, make("p", { textContent: words }));
    return;
  }
  const rows = stage.controls.map(sliderOf);
  const does = make("button", { textContent: "do it " }, make("kbd", { textContent: "enter" }));
  const words = "Each press of the button, or Enter on a slider, is one timestep.";
  pad.replaceChildren(...rows, does, make("p", { textContent: words }));
}

function sliderOf(control) {
  const discrete = control.kind === "discrete";
  const [low, high] = discrete ? [control.start, control.start + control.count - 1] : [control.low, control.high];
  const step = discrete || control.whole ? 1 : "any";
  const middle = step === 1 ? Math.round((low + high) / 2) : (low + high) / 2;
  const slider = make("input", { type: "range", min: low, max: high, step, value: middle });
  const output = make("output", { textContent: number(middle) });
  slider.addEventListener("input", () => { output.textContent = number(Number(slider.value)); });
  return make("label", {}, make("span", { textContent: control.name }), slider, output);
}

at("pad").addEventListener("submit", (event) => {
  event.preventDefault();
  const values = [...at("pad").querySelectorAll("input")].map((slider) => Number(slider.value));
  if (values.length) send({ do: "act", values });
});

function take(hold) {
  again(0, hold);
}

// --- what was recorded, and what it says -------------------------------------------------------------------------

function listDemonstrations(choose = null) {
  const task = wanted;
  const before = choose === null ? at("prompt").value : String(choose);
  const own = demonstrations.filter((one) => one.task === task);
  const options = own.map((one) => {
    const saved = one.recorded ? (one.saved ? ", saved" : ", not saved") : "";
    const words = `${one.by}: ${one.length} timesteps, return ${number(one.return)}${saved}`;
    return make("option", { value: one.number, textContent: words });
  });
  at("prompt").replaceChildren(make("option", { value: "", textContent: "no demonstration" }), ...options);
  at("prompt").value = own.some((one) => String(one.number) === before) ? before : "";
  at("save").hidden = !own.some((one) => one.recorded && !one.saved);
  at("expert").disabled = !greeting.tasks.find((one) => one.id === task)?.expert;
}

let answered = null;

function answer(message) {
  if (message.image !== undefined) {
    answered = make("p");
    const asked = make("p", { className: "asked", textContent: at("question").value || "caption:" });
    const parts = [asked, answered];
    if (message.image) parts.unshift(make("img", { src: message.image, alt: "the image that is asked about" }));
    at("answer").replaceChildren(...parts);
  }
  answered.append(message.text);
  if (message.over && !answered.textContent) answered.textContent = "(it says nothing)";
}

async function base64(file) {
  const url = await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
  return url.slice(url.indexOf(",") + 1);
}

const mostBytes = () => Math.floor((greeting.max_message_bytes - 10_000) * 0.74); // base64 is a third longer

async function ask(event) {
  event.preventDefault();
  complain("");
  const which = new FormData(at("ask")).get("image");
  const file = at("file").files[0];
  if (which === "file" && !file) return complain("choose an image file first");
  if (which === "file" && file.size > mostBytes()) return complain(`${file.name} has ${file.size} bytes, allowed ${mostBytes()}`);
  const image = which === "file" ? await base64(file) : which || null;
  send({ do: "ask", text: at("question").value, image });
}

async function upload() {
  const [file] = at("upload").files;
  at("upload").value = "";
  if (!file) return;
  if (file.size > mostBytes()) return complain(`${file.name} has ${file.size} bytes, allowed ${mostBytes()}`);
  complain("");
  send({ do: "upload", task: wanted, name: file.name, content: await base64(file) });
}

// --- tasks -------------------------------------------------------------------------------------------------------

function listTasks() {
  const words = at("filter").value.trim().toLowerCase();
  const found = greeting.tasks.filter((one) => one.id.includes(words));
  at("task").replaceChildren(...found.map((one) => make("option", { value: one.id, textContent: one.id })));
  at("task").value = wanted; // nothing where it is not among them
}

let choosing = null; // timer: who walks through the list begins where they stop

function chooseSoon() {
  clearTimeout(choosing);
  choosing = setTimeout(choose, 250);
}

function takeUp() {
  clearTimeout(choosing);
  choosing = null;
  wanted = at("task").value;
  instruction = null;
  at("instruction").value = "";
  at("beside").checked = false;
  at("prompt").value = "";
  listDemonstrations();
}

function choose() {
  if (!at("task").value) return;
  takeUp();
  begin(0, false);
}

function greet(message) {
  greeting = message;
  at("checkpoint").textContent = message.checkpoint;
  at("status").textContent = `${message.tasks.length} tasks, gatito ${message.version}`;
  at("others").textContent = message.others ? `${message.others} more tasks cannot be simulated here` : "";
  at("saved").textContent = `what you save goes to ${message.record}`;
  wanted = message.first;
  listTasks();
  begin(0);
}

// --- what the server says ----------------------------------------------------------------------------------------

const HEARD = {
  hello: greet,
  began,
  moment: show,
  ended,
  instructed: (message) => { instruction = message.text; },
  demonstrations: (message) => { demonstrations = message.all; listDemonstrations(); },
  kept: (message) => {
    at("prompt").dataset.next = message.number;
    if (controlled) { controlled = false; drawPad(); }
  },
  look: (message) => {
    const heading = make("h3", { textContent: "What it looked at when it acted last" });
    const picture = make("div");
    picture.innerHTML = message.html; // made and escaped by gatito
    at("looked").replaceChildren(heading, picture);
  },
  saved: (message) => { at("saved").textContent = `saved: ${message.folder}`; },
  answer,
  error: (message) => {
    const late = ["act", "finish"].includes(message.of) && (over || !controlled); // a press after the end
    if (!late) complain(message.text);
    if (message.of === "begin") awaited -= 1;
    if (message.of === "run" || message.of === "step") { over = true; run(false); }
  },
};

socket.addEventListener("message", (event) => {
  const message = JSON.parse(event.data);
  HEARD[message.say](message);
  const newest = at("prompt").dataset.next;
  if (message.say === "demonstrations" && newest && demonstrations.some((one) => String(one.number) === newest)) {
    listDemonstrations(Number(newest)); // it becomes the prompt
    delete at("prompt").dataset.next;
    again();
  }
});
socket.addEventListener("close", (event) => {
  going = false;
  clearTimeout(seeds);
  at("status").textContent = "not connected";
  const lost = "gatito play cannot be reached: start it again, and open the address that it prints";
  complain(event.reason || (token ? lost : "this address lacks the token behind #: open the one that gatito play printed"));
});

// --- hands -------------------------------------------------------------------------------------------------------

at("go").addEventListener("click", () => run(!going));
at("step").addEventListener("click", () => { run(false); send({ do: "step" }); });
at("again").addEventListener("click", () => again());
at("next").addEventListener("click", () => again(1));
at("seed").addEventListener("change", () => again());
at("speed").addEventListener("change", () => run(going));
at("control").addEventListener("click", () => take(!controlled));
at("finish").addEventListener("click", () => send({ do: "finish" }));
at("look").addEventListener("click", () => { run(false); send({ do: "look", pane: figures.length - 1 }); });
at("filter").addEventListener("input", listTasks);
at("filter").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !at("task").options.length) return;
  if (!at("task").value) at("task").selectedIndex = 0;
  choose();
});
at("task").addEventListener("change", chooseSoon);
at("prompt").addEventListener("change", () => again());
at("part").addEventListener("change", () => again());
at("beside").addEventListener("change", () => again());
at("expert").addEventListener("click", () => { complain(""); run(false); send({ do: "demonstrate", task: wanted }); });
at("upload").addEventListener("change", upload);
at("instruct").addEventListener("submit", (event) => {
  event.preventDefault();
  complain("");
  send({ do: "instruct", text: at("instruction").value.trim() || null });
});
at("own").addEventListener("click", () => {
  at("instruction").value = "";
  send({ do: "instruct", text: null });
});
at("save").addEventListener("submit", (event) => {
  event.preventDefault();
  complain("");
  send({ do: "save", task: wanted, name: at("name").value.trim() });
});
at("ask").addEventListener("submit", ask);
at("ask").addEventListener("change", () => { at("file").hidden = new FormData(at("ask")).get("image") !== "file"; });

const KEYS = {
  " ": () => run(!going), ".": () => at("step").click(), r: () => again(), n: () => again(1),
  c: () => take(!controlled), l: () => at("look").click(),
};

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input:not([type=checkbox], [type=radio])");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || stage === null) return;
  const [only] = stage.controls;
  const action = controlled && stage.controls.length === 1 && only.keys ? only.keys.indexOf(event.key) : -1;
  if (action >= 0) {
    event.preventDefault();
    send({ do: "act", values: [only.start + action] });
  } else if (KEYS[event.key] && !(event.key === " " && event.target.closest("button, label"))) {
    event.preventDefault();
    if (!event.repeat || event.key === ".") KEYS[event.key]();
  }
});
