"""All promises that `python -m tests.promises` checks."""

from promises import files, landing, long_run, placement, resume, schedules, selection, updates

PROMISES = {
    promise.name: promise
    for promise in (
        selection.PROMISE,
        updates.PROMISE,
        landing.PROMISE,
        schedules.PROMISE,
        long_run.PROMISE,
        placement.PROMISE,
        files.PROMISE,
        resume.PROMISE,
    )
}
