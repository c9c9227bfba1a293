"""A client for models served with the OpenAI protocol: batches of requests, a cache on disk, and costs."""

from __future__ import annotations

from kasatune.llm_client.batch import CachedClient, ProgressCallback
from kasatune.llm_client.cache import AnswerCache
from kasatune.llm_client.client import require_endpoint
from kasatune.llm_client.cost import Cost, Prices, total_cost
from kasatune.llm_client.request import ChatRequest, Endpoint, Refusal, Reply

__all__ = [
    "AnswerCache",
    "CachedClient",
    "ChatRequest",
    "Cost",
    "Endpoint",
    "Prices",
    "ProgressCallback",
    "Refusal",
    "Reply",
    "require_endpoint",
    "total_cost",
]
