"""The checker of signatures that conftest.py uses. As in Python's typing, an int is a float."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
