"""A small tokenizer with Llama's conventions, made here, for folders with random weights."""

from tokenizers import Tokenizer, decoders, models, normalizers, processors

SIZE = 512
"""Tokens of the vocabulary: special ones, bytes, printable ASCII, and beginnings of words."""

_SPACE = "▁"
_SPECIAL = ("<unk>", "<s>", "</s>")
_WORDS = (
    "In: What action should the robot take to pick up place put open close push pull turn on off "
    "move black white red green blue yellow bowl plate cup mug drawer door stove cabinet table "
    "left right top bottom front back middle next between and it from into pot block sink"
)


def synthetic_tokenizer() -> Tokenizer:
    """Byte-pair tokenizer of ``SIZE`` tokens: any text has an encoding, common words a short one."""
    ascii_tokens = [chr(code) for code in range(32, 127)]
    tokens = [*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), _SPACE, "\n", *ascii_tokens]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = []
    for prefix, letter in _beginnings():
        if len(vocabulary) == SIZE:
            break
        vocabulary[prefix + letter] = len(vocabulary)
        merges.append((prefix, letter))
    model = models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(list(_SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return tokenizer


def _beginnings() -> list[tuple[str, str]]:
    """Each beginning of a word, as what it is merged from; letter by letter, no two alike."""
    found: dict[tuple[str, str], None] = {}
    words = [_SPACE + word for word in _WORDS.split()]
    for length in range(1, max(map(len, words))):
        for word in words:
            if length < len(word):
                found[word[:length], word[length]] = None
    return list(found)
