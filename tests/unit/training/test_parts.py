"""What the parts of a rank refuse before a step is trained."""

import pytest

from eagleray.errors import SpecError
from eagleray.specs import Signature
from eagleray.training.parts import require_text


def signature(**fields: object) -> Signature:
    table = {"input_kind": "text", "input_shape": [8], "target_kind": "tokens", "target_shape": [8], **fields}
    return Signature.model_validate(table)


def test_text_as_bytes_can_be_completed():
    require_text(signature(tokenizer="bytes", vocabulary_size=258))
    require_text(signature(tokenizer="bytes", vocabulary_size=256))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"vocabulary_size": 258}, 'names no tokenizer; give tokenizer = "bytes"'),
        (
            {"vocabulary_size": 17, "tokenizer": "bytes"},
            "has 256 tokens, and the data's vocabulary_size is 17",
        ),
    ],
)
def test_tokens_that_no_prompt_fits_are_refused(fields, expected):
    with pytest.raises(SpecError, match=expected):
        require_text(signature(**fields))
