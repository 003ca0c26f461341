"""The main job, `python -m jaxprune demo`: is a large sparse network better than a small dense one?

Zhu & Gupta (2017, arXiv:1710.01878) compared the two at the same number of nonzero parameters. Here
the networks are small, so that a laptop answers in minutes: they read three-digit numbers, which
are composed of real handwritten digits. Every module but `interrupt` needs the packages of
`jaxprune[demo]`; importing this package needs none of them.

    config.py       what is trained, how long, and which networks are compared
    data.py         the images
    network.py      the network, and the widths that give a number of parameters
    train.py        one network with all seeds: compiled chunks of training steps
    store.py        the output folder: results file and checkpoints
    job.py          all networks in order, continued where an earlier process stopped
    interrupt.py    SIGINT and SIGTERM as a request to stop
    environment.py  versions, device, commit
    report.py       means, spreads and differences, the table, and the result in words
    pictures.py     the two pictures
    cli.py          runs the job with the options of the command, and prints the results
"""
