"""How well captions, answers and texts of one source are written and predicted."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from gatito.eval.checked import checked


@dataclass(frozen=True, kw_only=True)
class LanguageScore:
    """How well the documents of one source are written and predicted."""

    source: str
    """As in a mixture."""
    documents: int
    """That were asked about."""
    exact: float | None
    """Share of answers that are right to the letter, greedily; None of texts, which are only predicted."""
    ci_low: float | None
    """Wilson's 95 % interval of it."""
    ci_high: float | None
    """Likewise."""
    commonest: float | None
    """Share that always giving the commonest of the right answers would get."""
    bleu: float | None
    """Of all answers (0 to 100), by sacrebleu."""
    bits_per_byte: float
    """Of what is to be written, its ends included, given all before it."""
    unigram_bits_per_byte: float
    """With the frequencies of the very tokens that are to be written: no model without a context does better."""

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Any) -> "LanguageScore":
        """Undo `to_json`; raises `UserError` that names the field."""
        source, documents = checked(values, "source", "a text"), checked(values, "documents", "a whole number")
        names = [field.name for field in fields(cls)][2:]
        numbers = {
            name: checked(values, name, "a finite number", optional=not name.endswith("per_byte")) for name in names
        }
        return cls(source=source, documents=documents, **numbers)


def language_words(score: LanguageScore) -> str:
    """A score in words."""
    bits = f"{score.bits_per_byte:.2f} bits a byte (unigrams {score.unigram_bits_per_byte:.2f})"
    if score.exact is None:
        return bits
    return (
        f"{score.exact:.1%} exact ({score.ci_low:.1%} to {score.ci_high:.1%}), always the commonest answer "
        f"{score.commonest:.1%}; BLEU {score.bleu:.1f}; {bits}"
    )
