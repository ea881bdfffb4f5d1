"""The ledger's policy: claims, what is observed, what is decided. Pure: no Ray, no clock, no files."""

from eagleray.capacity.book import Book
from eagleray.capacity.claims import Claim, ClaimClass, Facts, Node, Observation, Request, Settings
from eagleray.capacity.client import Allotment, ClaimClient, Statement
from eagleray.capacity.decisions import (
    Ask,
    AskNodes,
    Decision,
    Evict,
    Expire,
    Grant,
    Notice,
    Suspend,
    Units,
    Wait,
    Withdraw,
)
from eagleray.capacity.events import Event
from eagleray.capacity.policy import decide

__all__ = [
    "Allotment",
    "Ask",
    "AskNodes",
    "Book",
    "Claim",
    "ClaimClass",
    "ClaimClient",
    "Decision",
    "Event",
    "Evict",
    "Expire",
    "Facts",
    "Grant",
    "Node",
    "Notice",
    "Observation",
    "Request",
    "Settings",
    "Statement",
    "Suspend",
    "Units",
    "Wait",
    "Withdraw",
    "decide",
]
