"""Tables that are larger than memory: their rows are arranged once, on disk, and read from there by position.

| file | what it does |
| --- | --- |
| `chunks.py` | some rows at a time of the files of a table |
| `layout.py` | the first pass: which sequences there are, and whether the rows already lie in their order |
| `pieces.py` | the rows of some sequences at a time, in order; where they don't lie so, they are first sorted into buckets on disk |
| `prepare.py` | the passes: parts, what is fitted, what is written |
| `folder.py` | the folder of a store: its arrays, what it was made of, whether that has changed |

What is fitted and encoded has the bits of the same table in memory: docs/decisions/056.
"""
