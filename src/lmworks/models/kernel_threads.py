"""How threads that run one kernel share its work: each takes the next piece, until all are done.

A kernel is a row of stages; a stage is cut into pieces, and nobody begins with the next before all
of them are done. Threads that come late find out how far the others are. Nobody waits for a thread
that has not come, only for pieces that one has begun: first by looking again and again, for some
microseconds, then by offering its core to others each time. A team on a busy machine is slow, and
never stuck.

What they share is two numbers for each stage: pieces taken and pieces done.
"""

from __future__ import annotations

import os

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from lmworks.core import compiled
from lmworks.models.fused_slots import PIECES, SPINS, STAGE, STAGES, THREADS
from lmworks.models.kernel_vectors import OPTIONS

_INT, _LONG = ir.IntType(32), ir.IntType(64)
_PAUSES = compiled.has("sse2")


@intrinsic
def count_up(context, address, number):
    """Add to the number at an address; what it was before."""

    def generate(cgctx, builder, signature, args):
        place = builder.inttoptr(args[0], _LONG.as_pointer())
        return builder.atomic_rmw("add", place, args[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def look(context, address):
    """The number at an address as other threads left it."""

    def generate(cgctx, builder, signature, args):
        return builder.load_atomic(
            builder.inttoptr(args[0], _LONG.as_pointer()), "acquire", align=8
        )

    return types.int64(types.int64), generate


@intrinsic
def breathe(context):
    """Tell the processor that this is a loop of waiting."""

    def generate(cgctx, builder, signature, args):
        if _PAUSES:
            kind = ir.FunctionType(ir.VoidType(), [])
            name = "llvm.x86.sse2.pause"
            builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [])
        return cgctx.get_dummy_value()

    return types.void(), generate


@intrinsic
def step_aside(context):
    """Let another thread have the core."""

    def generate(cgctx, builder, signature, args):
        if os.name == "posix":
            kind = ir.FunctionType(_INT, [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "sched_yield"), [])
        return cgctx.get_dummy_value()

    return types.void(), generate


@njit(**OPTIONS)
def cut(a, count, least):
    """How many pieces `count` is cut into, of at least so many each."""
    if a[THREADS] == 1:
        return 1
    return max(1, min(count // least, PIECES * a[THREADS]))


@njit(**OPTIONS)
def take(a):
    """The next piece of this stage; beyond the last there are more numbers, and no work."""
    return count_up(a[STAGES] + a[STAGE] * 16, 1)


@njit(**OPTIONS)
def finish(a, pieces, done):
    """End a stage of so many pieces, `done` of them by this thread, when all are done."""
    place = a[STAGES] + a[STAGE] * 16 + 8
    count_up(place, done)
    looks = 0
    while look(place) < pieces:
        looks += 1
        if looks < SPINS:
            breathe()
        else:
            step_aside()
    a[STAGE] += 1
