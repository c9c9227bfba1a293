"""Models behind the OpenAI protocol: asked once, remembered in a file, and what it cost."""

from __future__ import annotations

from kasatune.chat.asker import Asker
from kasatune.chat.cost import Cost, Prices, add_up
from kasatune.chat.ledger import Ledger
from kasatune.chat.protocol import require_endpoint
from kasatune.chat.request import Endpoint, Refusal, Reply, Request

__all__ = ["Asker", "Cost", "Endpoint", "Ledger", "Prices", "Refusal", "Reply", "Request", "add_up", "require_endpoint"]
