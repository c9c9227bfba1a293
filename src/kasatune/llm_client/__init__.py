"""Models behind the OpenAI protocol: asked once, remembered in a file, and what it cost."""

from __future__ import annotations

from kasatune.llm_client.batch import Asker
from kasatune.llm_client.cache import Ledger
from kasatune.llm_client.client import require_endpoint
from kasatune.llm_client.cost import Cost, Prices, add_up
from kasatune.llm_client.request import Endpoint, Refusal, Reply, Request

__all__ = ["Asker", "Cost", "Endpoint", "Ledger", "Prices", "Refusal", "Reply", "Request", "add_up", "require_endpoint"]
