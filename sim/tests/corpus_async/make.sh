#!/bin/sh
# Compiles the corpus to PTX with line information: make.sh "nvcc -std=c++17" [names]. The tests do not need it.
cd "$(dirname "$0")" || exit 1
compile=$1
shift
for name in ${*:-cp_async mbarrier wgmma gemm cluster tensor dependent rank_in_shared_address tcgen05 tcgen05_gemm tcgen05_attention}; do
    case $name in cp_async | mma) arch=sm_80 ;; tcgen05*) arch=sm_100a ;; *) arch=sm_90a ;; esac
    $compile -ptx -arch=$arch -lineinfo -o "$name.ptx" "$name.cu" || exit 1
    # Keep the files' names without their folders.
    sed -i 's#\(\.file.*"\)/.*/#\1#' "$name.ptx"
done
