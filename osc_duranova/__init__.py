"""The ``openstack`` command's plug-in: operations and placement decisions, for users of a Duranova cloud.

It runs on the client's machine and knows the cloud only by its API; nothing of the server is imported.
"""
