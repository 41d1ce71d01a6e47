pytest_plugins = ("tests.servers", "tests.models", "tests.sharing", "tests.demo_process", "tests.browsers")
