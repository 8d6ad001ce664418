"""The known labels; the dbt variables `token_types` and `operations` list the same ones."""

from __future__ import annotations

from enum import StrEnum


class TokenType(StrEnum):
    """What kind of model call consumed the tokens."""

    LLM = "llm"
    EMBEDDING = "embedding"
    FINE_TUNING = "fine_tuning"


class Operation(StrEnum):
    """What the tokens were used for."""

    QUERY = "query"
    CHAT = "chat"
    SUMMARIZE = "summarize"
    VECTOR_SEARCH = "vector_search"
    GENERATION = "generation"
    CLASSIFICATION = "classification"
    EXTRACTION = "extraction"
    BATCH = "batch"
    INTERNAL = "internal"


TOKEN_TYPE_LLM = TokenType.LLM.value
TOKEN_TYPE_EMBEDDING = TokenType.EMBEDDING.value
TOKEN_TYPE_FINE_TUNING = TokenType.FINE_TUNING.value

OPERATION_QUERY = Operation.QUERY.value
OPERATION_CHAT = Operation.CHAT.value
OPERATION_SUMMARIZE = Operation.SUMMARIZE.value
OPERATION_VECTOR_SEARCH = Operation.VECTOR_SEARCH.value
OPERATION_GENERATION = Operation.GENERATION.value
OPERATION_CLASSIFICATION = Operation.CLASSIFICATION.value
OPERATION_EXTRACTION = Operation.EXTRACTION.value
OPERATION_BATCH = Operation.BATCH.value
OPERATION_INTERNAL = Operation.INTERNAL.value
