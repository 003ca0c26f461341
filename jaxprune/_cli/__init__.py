"""The commands that work on files: `inspect`, `plan`, `prune` and `export`.

    options.py       their options and exit codes
    commands.py      what each command does
    planned.py       what happens to each leaf, from shapes and dtypes
    quantised.py     leaves quantised weights alone
    writing.py       checks what is written over what, and writes
    screen.py        prints tables, progress and results
    words.py         translates between options and arguments of the library
    stored_masks.py  finds the masks in a file that also holds the params
    interrupts.py    handles Ctrl-C
"""
