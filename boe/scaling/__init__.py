"""More than one GPU: sharded generation and studies, and one model over several GPUs.

:mod:`boe.scaling.answering` answers one shard of a job, whatever starts it;
:mod:`boe.scaling.engine` hands shards to datatrove, :mod:`boe.scaling.replicas` starts one
process per GPU of this host, and :mod:`boe.scaling.merging` puts shards together.
docs/scaling.md says which to use when.
"""
