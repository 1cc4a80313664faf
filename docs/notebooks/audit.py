"""
Audit
=====

How far are groups apart?
"""

1 + 1
