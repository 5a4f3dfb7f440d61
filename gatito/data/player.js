"use strict";

function bringToLife(player) {
  const data = JSON.parse(player.querySelector("script").textContent);
  const [button, slider, output] = ["button", "input", "output"].map((name) => player.querySelector(name));
  const sheet = player.querySelector("img");
  const canvas = player.querySelector("canvas");
  const last = data.timesteps.length - 1;
  let timer = null;

  const cells = data.rows.map(([name, values]) => {
    const row = document.createElement("div");
    const cell = document.createElement("dd");
    row.append(Object.assign(document.createElement("dt"), { textContent: name }), cell);
    player.querySelector(".now").append(row);
    return [cell, values];
  });

  function draw(i) {
    const { width, height, columns } = data.frames;
    const [x, y] = [(i % columns) * width, Math.floor(i / columns) * height];
    canvas.getContext("2d").drawImage(sheet, x, y, width, height, 0, 0, width, height);
  }

  function show() {
    const i = Number(slider.value);
    output.textContent = `${data.timesteps[i]} of ${data.last}`;
    for (const [cell, values] of cells) cell.textContent = values[Math.min(i, values.length - 1)];
    for (const line of player.querySelectorAll(".cursor")) {
      for (const end of ["x1", "x2"]) line.setAttribute(end, `${(100 * i) / Math.max(1, last)}%`);
    }
    if (canvas && sheet.complete) draw(i);
  }

  function pause() {
    clearInterval(timer);
    timer = null;
    button.textContent = "play";
  }

  function step() {
    if (Number(slider.value) >= last) return pause();
    slider.value = Number(slider.value) + 1;
    show();
  }

  button.addEventListener("click", () => {
    if (timer !== null) return pause();
    if (Number(slider.value) >= last) slider.value = 0;
    show();
    button.textContent = "pause";
    timer = setInterval(step, Math.min(250, Math.max(50, 12000 / (last + 1))));
  });
  slider.addEventListener("input", () => { pause(); show(); });
  if (sheet) sheet.addEventListener("load", show);
  show();
}

document.querySelectorAll(".player").forEach(bringToLife);
