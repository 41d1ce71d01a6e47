pytest_plugins = ("tests.demo_process", "tests.servers")
