"""Diagnosis of recurrent networks: gradients through time, stability, chaos, saturation and cost."""

from ._transition import parts as parts
from .activity import GateActivity as GateActivity
from .activity import activity as activity
from .complexity import Complexity as Complexity
from .complexity import Cost as Cost
from .complexity import complexity as complexity
from .jacobians import GradientBound as GradientBound
from .jacobians import GradientGrowth as GradientGrowth
from .jacobians import GradientNorms as GradientNorms
from .jacobians import gradient_bound as gradient_bound
from .jacobians import gradient_growth as gradient_growth
from .jacobians import jacobians as jacobians
from .jacobians import product_norms as product_norms
from .jacobians import state_gradients as state_gradients
from .lyapunov import LyapunovSpectrum as LyapunovSpectrum
from .lyapunov import Map as Map
from .lyapunov import lyapunov_spectrum as lyapunov_spectrum
from .lyapunov import runge_kutta as runge_kutta
from .series import Divergence as Divergence
from .series import divergence as divergence
from .spectrum import FixedPoints as FixedPoints
from .spectrum import Spectrum as Spectrum
from .spectrum import fixed_points as fixed_points
from .spectrum import spectra as spectra
from .spectrum import spectrum as spectrum
