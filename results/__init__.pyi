from .app_report import print_audit as print_audit
from .reading.study_reader import load_run as load_run
