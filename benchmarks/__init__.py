"""Benchmarks: what anybatch promises, measured beside named peers, predictions written first.

    python -m benchmarks                      everything that has no stored result yet
    python -m benchmarks mnist --for 150m     only these, begun only while they fit
    python -m benchmarks --for 0s             nothing new; RESULTS.md written again
    python -m benchmarks --list               what there is and what is done

    NAME.py                   one benchmark: question, prediction, trials, table
    results/NAME/KEY.json     one finished trial, with the hardware that it ran on
    RESULTS.md                generated from results/, never typed

A trial runs again once its file in results/ has been removed. Trainings that a trial has begun lie
in runs/ (not kept by git) and are continued. The peers of `overhead` are measured where they can
be imported: they belong into an environment of their own.
"""

__all__: list[str] = []
