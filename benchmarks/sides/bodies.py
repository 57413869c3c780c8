"""The task bodies that every side runs."""

from __future__ import annotations

import asyncio
import time

NAP_SECONDS = 0.2
BLOCK_SECONDS = 0.01


def same(x: int) -> int:
    return x


def add_one(x: int) -> int:
    return x + 1


def block(x: int) -> int:
    time.sleep(BLOCK_SECONDS)
    return x


async def same_async(x: int) -> int:
    return x


async def add_one_async(x: int) -> int:
    return x + 1


async def add_first_async(x: int, _y: int, _z: int) -> int:
    return x + 1


async def nap(x: int) -> int:
    await asyncio.sleep(NAP_SECONDS)
    return x


async def echo_command(x: int) -> str:
    return f"/bin/echo {x}"


async def sleep_command(_: int) -> str:
    return "sleep 1"
