"""What belongs to a checkpoint beside its weights: text model, patcher, and the layout of every task."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from huggingface_hub import snapshot_download
from transformers import BatchFeature, ProcessorMixin
from transformers.image_utils import load_image

from gatito.data.packing import BESIDE_ROWS, pack
from gatito.errors import UserError, nearest
from gatito.model.tokenizer import TOKENIZER_FILE, GatitoTokenizer
from gatito.tokenizers import Layout, TextTokenizer, TokenSequence, Vocabulary
from gatito.tokenizers.chat import read_messages
from gatito.tokenizers.documents import Part, Words, prompt_tokens
from gatito.tokenizers.images import ImageConfig, pixels_of, read_image
from gatito.tokenizers.trunk import Trunk

SCHEMA = 1
LAYOUTS_FILE, CONFIG_FILE = "layouts.json", "processor_config.json"

Picture = np.ndarray | PIL.Image.Image


class GatitoProcessor(ProcessorMixin):
    """Turns text and images into model inputs, and holds the layout of every task that was trained on."""

    attributes: list[str] = []  # noqa: RUF012

    def __init__(
        self, trunk: Trunk, text: TextTokenizer, layouts: Mapping[str, Layout], held_out: Sequence[str] = ()
    ) -> None:
        """`layouts` maps task ids to layouts; `trunk` tells how many positions an image takes. Tasks that are
        `held_out` are known by their layouts, and were not trained on."""
        self.held_out = tuple(held_out)
        self.trunk, self.vocabulary, self.text, self.layouts = trunk, trunk.vocabulary, text, dict(layouts)
        self.chat_template = None

    def __repr__(self) -> str:
        return f"GatitoProcessor({len(self.layouts)} layouts: {', '.join(sorted(self.layouts))})"

    @cached_property
    def tokenizer(self) -> GatitoTokenizer:
        """The text model as a transformers tokenizer."""
        return GatitoTokenizer(self.text)

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        images: Picture | Sequence[Picture] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """One prompt of text, or of one image each followed by its text, per row; rows are padded on the left.

        Images are (H, W, C) uint8, or PIL's. Returns tensors as `GatitoForCausalLM.generate` takes them.
        """
        several = [images] if isinstance(images, np.ndarray | PIL.Image.Image) else images
        texts = [text] if isinstance(text, str) else list(text or [""] * len(several or []))
        if several is not None and len(several) != len(texts):
            raise UserError(f"{len(several)} images for {len(texts)} texts; give one each")
        shown = [()] * len(texts) if several is None else [(_pixels(image, "image"),) for image in several]
        return self.prompts([(*image, Words(text=words)) for image, words in zip(shown, texts, strict=True)])

    def apply_chat_template(  # type: ignore[override]
        self,
        conversation: Sequence[Any],
        chat_template: str | None = None,
        *,
        tokenize: bool = True,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> BatchFeature:
        """Inputs of one conversation, or of each of several, up to where the model answers; `continue_final_message`
        lets it go on with an assistant's last message instead.

        Turns read as they did in training (`gatito.tokenizers.documents.asked`): there is no other template. Images
        are arrays, PIL's, or named by path or address. Raises `UserError` for what is no conversation, and where the
        last message is not the one to be answered, or continued.
        """
        if chat_template is not None or not tokenize:
            raise UserError("turns of gatito are tokens of their own and read as in training; leave the template out")
        is_one = bool(conversation) and isinstance(conversation[0], Mapping)
        rows = [conversation] if is_one else conversation
        return self.prompts([self._chat_prompt(messages, continue_final_message) for messages in rows])

    def _chat_prompt(self, messages: Any, goes_on: bool) -> Sequence[Part]:
        read = read_messages(messages, "messages", _pixels, iter(()))
        if (len(read.answered) == len(read.asked)) != goes_on:
            expected = "an assistant's, to be continued" if goes_on else "a user's"
            raise UserError(f"messages: the last is not {expected}")
        return read.prompt(goes_on=goes_on)

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **kwargs: Any
    ) -> list[str]:
        """All text of each row: of its prompt and what was written, without its ends and padding."""
        return [self._text_of(row) for row in generated_outputs]

    def prompts(self, prompts: Sequence[Sequence[Part]]) -> BatchFeature:
        """A prompt of images and texts in any order per row, such as `asked([image, "What is it?"])`, of which every
        text is encoded by itself, as in training; rows are padded on the left.

        Raises `UserError` where there is no prompt, or an empty one.
        """
        if not prompts:
            raise UserError("no prompts: give at least one text or image")
        rows = [prompt_tokens(parts, self.vocabulary, self.text) for parts in prompts]
        return BatchFeature(_left_padded(rows, self.trunk))

    def batch_decode(self, ids: torch.Tensor, **kwargs: Any) -> list[str]:
        """Text of each row, up to its end token."""
        return [self.decode(row) for row in ids]

    def decode(self, ids: torch.Tensor | Sequence[int], **kwargs: Any) -> str:
        """Text of ids up to the end token; ids that are no text are left out."""
        values = [int(i) for i in ids]
        return self._text_of(values[: values.index(self.text.end)] if self.text.end in values else values)

    def _text_of(self, ids: torch.Tensor | Sequence[int]) -> str:
        """Text of ids; those that are no text, as padding is not, are left out."""
        return self.text.decode([i for i in map(int, ids) if i < self.text.size and i != self.text.unknown])

    def layout(self, task: str) -> Layout:
        """The layout of a task, or `UserError` with the nearest one that the checkpoint knows."""
        if task not in self.layouts:
            hint = nearest(task, self.layouts, "task").partition("; ")[2]
            raise UserError(f"this checkpoint was not trained on task {task!r}; {hint}")
        return self.layouts[task]

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Write the text model, the layouts and the id ranges into a checkpoint folder."""
        if push_to_hub:
            raise UserError("save_pretrained of the processor only writes a folder; upload it with push_to_hub()")
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TOKENIZER_FILE).write_bytes(self.text.model)
        layouts = {task: layout.to_json() for task, layout in self.layouts.items()}
        (folder / LAYOUTS_FILE).write_text(json.dumps(layouts))
        config = {
            "schema": SCHEMA,
            "processor_class": "GatitoProcessor",
            "vocabulary": self.vocabulary.to_json(),
            "trunk": self.trunk.to_json(),
            "held_out": list(self.held_out),
        }
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1))
        return [str(folder / name) for name in (TOKENIZER_FILE, LAYOUTS_FILE, CONFIG_FILE)]

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> "GatitoProcessor":
        """Read from a checkpoint folder, or from a repository on the hub."""
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            patterns = [TOKENIZER_FILE, LAYOUTS_FILE, CONFIG_FILE]
            folder = Path(snapshot_download(str(pretrained_model_name_or_path), allow_patterns=patterns))
        for name in (TOKENIZER_FILE, LAYOUTS_FILE, CONFIG_FILE):
            if not (folder / name).is_file():
                raise UserError(f"{folder}: {name} is missing; this is no complete gatito checkpoint")
        config = json.loads((folder / CONFIG_FILE).read_text())
        if config.get("schema") != SCHEMA:
            raise UserError(
                f"{folder / CONFIG_FILE}: schema {config.get('schema')}, this gatito reads {SCHEMA}; use the gatito "
                "that wrote it, or train again"
            )
        text = TextTokenizer.load(folder / TOKENIZER_FILE)
        layouts = json.loads((folder / LAYOUTS_FILE).read_text())
        vocabulary = Vocabulary(**config["vocabulary"])
        # Checkpoints from before there were other trunks say nothing: theirs are flat.
        trunk = Trunk(vocabulary=vocabulary, **config.get("trunk", {}))
        known = {task: Layout.from_json(values, text) for task, values in layouts.items()}
        return cls(trunk, text, known, config.get("held_out", ()))


def _pixels(image: Any, where: str) -> np.ndarray:
    """The pixels of an array as it is, and of PIL's and of files as in training."""
    if isinstance(image, np.ndarray):
        return image
    if isinstance(image, Path) or (isinstance(image, str) and Path(image).is_file()):
        return read_image(Path(image), ImageConfig(), f"{where}: {image}")
    if isinstance(image, str):
        try:
            image = load_image(image)  # an address, or base64
        except (ValueError, OSError) as error:
            raise UserError(f"{where}: {image[:80]!r} is no image file, and no address of one ({error})") from None
    if not isinstance(image, PIL.Image.Image):
        raise UserError(f"{where}: a {type(image).__name__}, expected an array (H, W, C), an image of PIL, or a file")
    return pixels_of(image, ImageConfig(), where)


def _left_padded(rows: Sequence[TokenSequence], trunk: Trunk) -> dict[str, torch.Tensor]:
    """Pack rows of unequal length with the padding on the left, as `generate` wants them."""
    batch = pack([[row] for row in rows], trunk)
    L = batch.input_ids.shape[1]
    lengths = (batch.segments > 0).sum(-1)
    source = torch.arange(L) - (L - lengths)[:, None]  # (B, L), negative for padding
    mask = source >= 0
    take = source.clamp(min=0)
    inputs = {
        "input_ids": torch.where(mask, batch.input_ids.gather(1, take), 0),
        "attention_mask": mask.long(),
        "local_positions": batch.local_positions.gather(1, take),
    }
    if batch.latent_slots is not None:
        shift = (L - lengths)[batch.latent_slots[:, 0] // L]  # the padding of each image's row
        inputs["latent_slots"] = batch.latent_slots + shift[:, None]
    beside = {name: tensor for name, tensor in batch.tensors().items() if name in BESIDE_ROWS}
    return beside | inputs
