"""The systems: each a folder with the same rooms, found by the system's name."""

import importlib
from types import ModuleType

# Every system, and the rooms that only some of them have.
SYSTEMS = ("dpr", "prag", "rag", "self_retrieval", "srrag")
_RARE_ROOMS = {"entries": ("srrag",)}


def list_systems(room: str) -> tuple[str, ...]:
    """The systems that have a room."""
    return _RARE_ROOMS.get(room, SYSTEMS)


def open_room(system: str, room: str) -> ModuleType:
    """The module of a system's room, such as `rag_jax.systems.rag.pipeline`."""
    return importlib.import_module(f"rag_jax.systems.{system}.{room}")
