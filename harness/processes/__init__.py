"""Runs in several processes: how ranks are started, watched and ended, and the locks that they share.

- guard: end a command's processes and delete its temporary files, however it ends. interrupts: end a command at Ctrl-C.
- imports: prepare a process that trains. parent_watch: end a process with the one that started it.
- launch: train a spec in the processes that its LaunchSpec asks for.
- group: what a group of ranks is to do, and how it ended. ranks: start a group, and judge how it ended.
- fork_server: the process that ranks are forked from. torchrun: the other way to start them. rank: the life of one rank.
- workers: forks of a process that do one task after another, such as judging a configuration.
- cuda_free_fork: import upstream without starting CUDA, so that the process can still be forked.
- gpu_locks: locks on GPUs and on torch's compiled extensions.
- deepspeed_ranks, shims: what ranks of DeepSpeed, and of FSDP on a CPU, need besides.
"""
