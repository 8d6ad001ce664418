"""Which spans are calls of a model: the same for `usage_of`, the processor and files."""

from __future__ import annotations

import pytest

from token_tracking.responses.spans import is_embedding, is_model_call, repeats_others

OPERATION, KIND = "gen_ai.operation.name", "openinference.span.kind"


@pytest.mark.parametrize(
    ("attributes", "is_call"),
    [
        ({OPERATION: "chat"}, True),
        ({OPERATION: "responses"}, True),
        ({OPERATION: "chat", KIND: "LLM"}, True),
        ({"llm.request.type": "completion"}, True),
        ({"ai.operationId": "ai.streamText.doStream", OPERATION: "chat"}, True),
        ({OPERATION: "chat", KIND: "AGENT"}, False),
        ({OPERATION: "chat", "ai.operationId": "ai.streamText"}, False),
        ({OPERATION: "invoke_agent"}, False),
        ({KIND: "CHAIN", "llm.request.type": "chat"}, False),
    ],
)
def test_every_name_must_say_that_it_is_a_call(attributes: dict[str, object], is_call: bool):
    assert is_model_call(attributes) is is_call
    assert repeats_others(attributes) is not is_call


def test_attributes_that_do_not_say_what_they_are():
    """`usage_of` is given what its caller knows to be a call; a stream of spans has others, too."""
    assert not is_model_call({"gen_ai.usage.input_tokens": 5})
    assert not repeats_others({"gen_ai.usage.input_tokens": 5})
    assert repeats_others({"gen_ai.agent.name": "planner"})


@pytest.mark.parametrize("name", [OPERATION, KIND, "llm.request.type"])
def test_embeddings_by_each_name(name: str):
    assert is_embedding({name: "EMBEDDING"})
    assert not is_embedding({name: "chat"})
