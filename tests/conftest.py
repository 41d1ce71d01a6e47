pytest_plugins = ("tests.servers", "tests.demo_process", "tests.browsers")
