//! Lets the code tell interpreters apart, for example free-threaded ones (`Py_GIL_DISABLED`).

fn main() {
    pyo3_build_config::use_pyo3_cfgs();
}
