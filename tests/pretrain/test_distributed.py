"""No process outlives its parent, not even one whose parent was killed before it could ask."""

import os
import select
import signal

from pretrain.distributed import die_with_parent


def test_child_of_a_parent_that_died_before_it_could_ask_ends_at_once() -> None:
    read, write = os.pipe()
    parent = os.fork()
    if parent == 0:
        me = os.getpid()
        if os.fork() == 0:
            os.close(read)
            while os.getppid() == me:
                pass
            die_with_parent(me)
            os.write(write, b"outlived its parent")
            os._exit(0)
        os.kill(me, signal.SIGKILL)
    os.close(write)
    os.waitpid(parent, 0)
    answers, _, _ = select.select([read], [], [], 20)
    assert answers, "the grandchild neither spoke nor ended"
    assert os.read(read, 100) == b""  # its end of the pipe closed without a word
    os.close(read)
