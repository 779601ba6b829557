from .auditing.app_audit import audit as audit
from .strategies.curious import HonestButCurious as HonestButCurious
from .strategies.dequantize import Dequantize as Dequantize
from .strategies.malicious import Malicious as Malicious
from .strategies.planned import Planned as Planned
from .strategies.sampling import SampleBySeed as SampleBySeed
