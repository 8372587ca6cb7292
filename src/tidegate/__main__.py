import sys

try:
    from tidegate.cli import main

    status = main()
except KeyboardInterrupt:
    print("Interrupted.", file=sys.stderr)
    status = 130
sys.exit(status)
