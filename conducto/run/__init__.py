"""Running nodes: what may begin, processes, what is kept of them, and what people see."""
