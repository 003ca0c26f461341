"""The commands that work on files: `inspect`, `plan`, `prune` and `export`.

- `options`: their options and exit codes
- `commands`: what each command does
- `planned`: what happens to each leaf, from shapes and dtypes
- `layout`: whether weights are (in, out) or (out, in)
- `pruning`: prunes leaf by leaf, also where leaves compete in one pool
- `quantised`: leaves quantised weights alone
- `training_state`: which leaves are params, masks or optimizer state
- `optimizer_states`: finds the optimizer states, and the params that each belongs to
- `writing`: checks what is written over what, and writes
- `screen`: prints tables, progress and results
- `words`: translates between options and arguments of the library
- `stored_masks`: finds the masks in a file that also holds the params
- `interrupts`: handles Ctrl-C
"""
