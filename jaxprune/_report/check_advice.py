"""What the errors of `check` say can be the cause, and what to do about it."""

DIVERGED = (
    "From now on every device has its own masks. In shard_map or pmap, where each device holds all "
    "params and a part of the batch, average the gradients before tx.update, grads = "
    "jax.lax.pmean(grads, axis), and leave out axis_name. Where the leaves are split over the "
    "axis, pass prune(..., axis_name=axis). With several processes, build the same transformation "
    "in all of them; jaxprune.check_agreement(schedule, ...) compares them."
)
COPIED = (
    "prune(..., axis_name=...) is for leaves that are split over this axis: it counts all copies "
    "together, so that no copy has the masks that are due. If only the data are split, leave "
    "axis_name out, and average the gradients before tx.update: jax.lax.pmean(grads, axis)."
)
MISPLACED = (
    "Something changes the updates after prune: make jaxprune.prune the last link of the chain, or "
    "wrap the optimizer with prune(schedule, inner=optimizer). Apply every update, params = "
    "optax.apply_updates(params, updates), and change the params in no other way. If the params "
    "are of an earlier step, were restored without their optimizer state, or are an average, use "
    "jaxprune.apply_masks(params, opt_state). If the model sets or rescales this leaf itself (a "
    "reparametrised weight), exclude it from pruning."
)
REPLACED = (
    " If you replaced weights, such as those of a layer that you reset, mask them before the next "
    "update, params = jaxprune.apply_masks(params, opt_state), and now set the count to 0: "
    "opt_state = optax.tree.set(opt_state, violations=jnp.int32(0)). If a leaf was left out of "
    "pruning for a while and then pruned again, its old mask came back: call "
    "jaxprune.upgrade_state(tx, params, opt_state) whenever the rules change."
)
DENSE = (
    'With regrow="hold" and "train" the params stay dense. Check what the model uses, '
    "jaxprune.check(jaxprune.apply_masks(params, opt_state), opt_state), or, at the end, only the "
    "masks, jaxprune.check(params, opt_state, done=True)."
)
NOT_DONE = (
    "Train until the last fire, or let the schedule end earlier. Steps are updates since tx.init; "
    "inside optax.MultiSteps, k calls are one. If these are the best params of a longer run (early "
    "stopping), select among params from after the last fire."
)
NOT_STARTED = (
    "This state has counted no update: pass the one that the last tx.update returned, not the one "
    "of tx.init."
)
LOST = (
    "Were the masks lost when the state was restored, or replaced? One more tx.update catches up: "
    "it drops the smallest weights until the counts are right."
)
LOST_IN_SPARSE_TRAINING = (
    "Were the masks lost when the state was restored, or replaced? If they drop too few weights, "
    "one more tx.update of rigl or set_ catches up; but none brings weights back, and "
    "static_sparse keeps its masks. Pass set_masks masks that drop as many weights as are due, or "
    "build the transformation with their sparsity."
)
EARLIER = (
    "Are the params an average, or from an earlier step than the state, such as the best "
    "checkpoint of early stopping? Pass params and state of the same step, or prune these params "
    "with jaxprune.apply_masks(params, opt_state). If they are of the same step, something changes "
    "the updates after prune: make jaxprune.prune the last link of the chain."
)
NOT_FINITE = (
    "An update cannot turn NaN or inf into zero: repair the params with "
    "jaxprune.apply_masks(params, opt_state), and find out where these values come from."
)
