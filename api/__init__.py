"""HTTP only: microversions, policy, request checks, views. It never touches a hypervisor."""
