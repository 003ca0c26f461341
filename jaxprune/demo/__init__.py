"""The main job, `python -m jaxprune demo`: is a large sparse network better than a small dense one?

Zhu & Gupta (2017, arXiv:1710.01878) compared the two at the same number of nonzero parameters. Here
the networks are small and the images few, so that a laptop answers in minutes. Every module but
`interrupt` needs the packages of `jaxprune[demo]`; importing this package needs none of them.

    config.py       what is trained, how long, and which networks are compared
    data.py         the images
    network.py      the network, and the widths that give a number of parameters
    train.py        one run: compiled chunks of training steps
    store.py        the output folder: results file and checkpoints
    job.py          all runs in order, continued where an earlier process stopped
    interrupt.py    SIGINT and SIGTERM as a request to stop
    environment.py  versions, device, commit
    report.py       mean and spread over the runs, and the table
    pictures.py     the two pictures
    cli.py          runs the job with the options of the command, and prints the results
"""
