"""`python -m node.worker`: the process of one device; a node starts it."""

from node.worker.compute_loop import main

if __name__ == "__main__":
    main()
