"""The gated recurrent unit as pure functions: a file for each back end, one signature (see README.md)."""
