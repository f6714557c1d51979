"""Real servers for the demo, the tests and the benchmarks: started on free ports in temporary folders, ended by pid."""
