"""The recipe: YAML becomes typed, frozen settings; every rule across fields is checked here.

A recipe stands alone: a field that it leaves out has the default given here, never another recipe's value. Each module
is imported by itself: a job needs few of them, and starts sooner.
"""
