"""Models behind the OpenAI protocol: asked once, remembered in a file, and what it cost."""

from __future__ import annotations

from kasatune.llm_client.batch import CachedClient
from kasatune.llm_client.cache import AnswerCache
from kasatune.llm_client.client import require_endpoint
from kasatune.llm_client.cost import Cost, Prices, add_up
from kasatune.llm_client.request import ChatRequest, Endpoint, Refusal, Reply

__all__ = [
    "AnswerCache",
    "CachedClient",
    "ChatRequest",
    "Cost",
    "Endpoint",
    "Prices",
    "Refusal",
    "Reply",
    "add_up",
    "require_endpoint",
]
