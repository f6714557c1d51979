"""Replays messages from a file against a group of a DAG file: no broker, no database, no waiting.

Flow: :mod:`.dagfile` parses the file as Airflow does, finds the group and renders its templates; :mod:`.lines` reads
the messages; :mod:`.replaying` does the group's real wait on a ledger in memory, with streams (:mod:`.feed`) that stand
for its brokers and a clock that goes by the messages' stamps; :mod:`.report` says what each message did.

Invariant: whether a message counts, and whether the group is complete, is decided by the very wait that runs in a
triggerer. Only the reasons why one does *not* count are found out afterwards.
"""
