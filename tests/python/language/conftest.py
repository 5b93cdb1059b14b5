"""Small real tokenizers, trained on the spot."""

from __future__ import annotations

import pytest

TEXT = [
    "the merge of models is a mean of weights",
    "weights of models, shared and merged again",
    "a mean of means is a mean, is it not",
] * 20


def trained(kind, size=120, special=("<unk>", "<s>", "</s>")):
    tokenizers = pytest.importorskip("tokenizers")
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    settings = {"vocab_size": size, "special_tokens": list(special), "show_progress": False}
    if kind == "byte-level BPE":
        made = tokenizers.Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **settings
        )
    elif kind == "BPE":
        made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
        made.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        made.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        trainer = trainers.BpeTrainer(**settings)
    elif kind == "WordPiece":
        made = tokenizers.Tokenizer(models.WordPiece(unk_token="<unk>"))
        made.normalizer = normalizers.Lowercase()
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        made.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(**settings)
    else:
        made = tokenizers.Tokenizer(models.Unigram())
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(unk_token="<unk>", **settings)
    made.train_from_iterator(TEXT, trainer)
    return made


KINDS = ["byte-level BPE", "BPE", "WordPiece", "Unigram"]


@pytest.fixture(params=KINDS)
def tokenizer(request):
    return trained(request.param)


@pytest.fixture(scope="session")
def text():
    return TEXT
