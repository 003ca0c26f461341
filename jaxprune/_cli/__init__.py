"""The commands that work on files: `inspect`, `plan`, `prune` and `export`.

`options.py` has their options and exit codes, `commands.py` does the work, and `screen.py` prints.
`planned.py` plans what happens to the leaves, and `quantised.py` leaves quantised weights alone.
`words.py` translates between options and arguments, `stored_masks.py` finds the masks in a file
that also holds the params, and `interrupts.py` handles Ctrl-C.
"""
