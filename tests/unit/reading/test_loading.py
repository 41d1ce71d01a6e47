import subprocess
import sys

LIBRARIES = ("docx", "lxml", "numpy", "openpyxl", "PIL", "pptx", "pypdfium2")


def test_who_reads_no_file_loads_no_library_of_the_formats() -> None:
    """A tenth of a gateway's start and 30 MB of it."""
    for process in ("gateway.server.main", "apps.host.main"):
        code = f"import sys, {process}\nprint(*[name for name in {LIBRARIES} if name in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
        assert done.stdout == "\n", process
