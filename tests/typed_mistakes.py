"""Mistakes of a user that type checkers must find: nothing here is run, `pyright` checks it.

Each line has a mistake that is ignored. `pyright` reports an ignored error that is none, so that a
mistake which it no longer finds fails the check.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

import jax
import optax

import jaxprune


def misspelled_names(schedule: jaxprune.SparsitySchedule) -> None:
    jaxprune.cubic_schedul(0.9, 1, 2)  # pyright: ignore[reportAttributeAccessIssue]
    jaxprune.plots.schedule_curv(schedule)  # pyright: ignore[reportAttributeAccessIssue]


def fires_left(state: optax.OptState) -> int:
    return jaxprune.get_state(state).progress.fires_lft  # pyright: ignore[reportAttributeAccessIssue]


def wrong_arguments(schedule: jaxprune.SparsitySchedule) -> None:
    jaxprune.prune(schedule, regrow="holdd")  # pyright: ignore[reportArgumentType]
    jaxprune.prune(schedule, ties="idx")  # pyright: ignore[reportArgumentType]
    jaxprune.prune(schedule, include=3)  # pyright: ignore[reportArgumentType]
    jaxprune.prune(schedule, exclude=[3])  # pyright: ignore[reportArgumentType]
    jaxprune.prune(schedule, overrides=["a"])  # pyright: ignore[reportArgumentType]
    jaxprune.prune(schedule, overrides={"a": "0.5"})  # pyright: ignore[reportArgumentType]
    jaxprune.prune(schedule, axis_name=3.5)  # pyright: ignore[reportArgumentType]
    jaxprune.plan({}, schedule, ties="idx")  # pyright: ignore[reportArgumentType]
    jaxprune.prune(schedule, structure="2:4")  # pyright: ignore[reportArgumentType]
    jaxprune.prune(schedule, structure=jaxprune.NM)  # pyright: ignore[reportArgumentType]
    jaxprune.prune(schedule, roles=("in", "out"))  # pyright: ignore[reportArgumentType]
    jaxprune.prune(schedule, score="saliency")  # pyright: ignore[reportArgumentType]
    jaxprune.plan({}, 0.5, structural=jax.numpy.eye(3))  # pyright: ignore[reportArgumentType]
    jaxprune.prune_params({}, 0.5, score=jaxprune.movement)  # pyright: ignore[reportCallIssue, reportArgumentType]
    jaxprune.static_sparse("0.5", inner=optax.sgd(0.1))  # pyright: ignore[reportArgumentType]
    jaxprune.one_shot_schedule("0.5")  # pyright: ignore[reportArgumentType]
    jaxprune.SparsitySchedule(0, 10, 5, ("0.5",))  # pyright: ignore[reportArgumentType]
    jaxprune.Block((1, 16), pooling="sum")  # pyright: ignore[reportArgumentType]
    jaxprune.Channel(norm=3)  # pyright: ignore[reportArgumentType]
    jaxprune.topk_masks([], 3, pool="foo")  # pyright: ignore[reportArgumentType]
    jaxprune.channel_groups(jax.numpy.sin, {}, 1.0, allow=["norm"])  # pyright: ignore[reportArgumentType]


def smaller(params: dict[str, jax.Array]) -> None:
    results = jaxprune.shrink(jax.numpy.sin, params, 1.0, along=None)
    print(results[2])  # pyright: ignore[reportGeneralTypeIssues]
