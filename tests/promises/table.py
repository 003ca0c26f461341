"""All promises that `python -m tests.promises` checks."""

from tests.promises import landing, long_run, schedules, selection, updates

PROMISES = {
    promise.name: promise
    for promise in (
        selection.PROMISE,
        updates.PROMISE,
        landing.PROMISE,
        schedules.PROMISE,
        long_run.PROMISE,
    )
}
