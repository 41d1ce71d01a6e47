pytest_plugins = ("tests.servers", "tests.sharing", "tests.demo_process", "tests.browsers")
