#include "octavo/ops/cuda/cublaslt_gemm.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include <algorithm>
#include <map>
#include <memory>
#include <tuple>

#include "octavo/base/error.h"
#include "octavo/ops/cuda/cublaslt_kernels.h"
#include "octavo/quant/block_scaling.h"
#include "octavo/quant/cuda/device.h"

namespace octavo::cuda {
namespace {

constexpr std::size_t kWorkspaceBytes = std::size_t{32} << 20;
// cuBLASLt takes the tokens as columns, in steps of 16; the rest of a batch goes through a padded copy.
constexpr std::int64_t kTokenStep = 16;
constexpr std::int64_t kScaleStep = 4;  // its rows of weight scales are a multiple of this long

constexpr std::int64_t round_up(std::int64_t n, std::int64_t step) { return (n + step - 1) / step * step; }

#define OCTAVO_TEXT(x) #x
#define OCTAVO_TEXT_OF(x) OCTAVO_TEXT(x)
constexpr const char* kLibrary = "libcublasLt.so." OCTAVO_TEXT_OF(CUBLAS_VER_MAJOR);

// cuBLASLt's functions, found when they are first asked for: half a gigabyte that only those load who want
// it, and programs start where it is not installed.
#define OCTAVO_CUBLASLT(use)                                                                         \
  use(GetStatusString) use(Create) use(Destroy) use(MatmulDescCreate) use(MatmulDescDestroy)         \
      use(MatmulDescSetAttribute) use(MatrixLayoutCreate) use(MatrixLayoutDestroy)                   \
          use(MatmulPreferenceCreate) use(MatmulPreferenceDestroy) use(MatmulPreferenceSetAttribute) \
              use(MatmulAlgoGetHeuristic) use(Matmul)
struct Functions {
#define OCTAVO_MEMBER(name) decltype(&cublasLt##name) name;  // NOLINT(bugprone-macro-parentheses): a member
  OCTAVO_CUBLASLT(OCTAVO_MEMBER)
#undef OCTAVO_MEMBER
};

const Functions& lt() {
  static const Functions functions = [] {
    void* const library = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr)
      fail(
          "use_deep_gemm: false needs cuBLASLt: {}; install CUDA's libraries, or leave use_deep_gemm at true",
          dlerror());
    Functions found{};
#define OCTAVO_FIND(name)                                                                           \
  found.name = reinterpret_cast<decltype(found.name)>(dlsym(library, OCTAVO_TEXT(cublasLt##name))); \
  if (found.name == nullptr) fail_system("{} has no {}", kLibrary, OCTAVO_TEXT(cublasLt##name));
    OCTAVO_CUBLASLT(OCTAVO_FIND)
#undef OCTAVO_FIND
    return found;
  }();
  return functions;
}

void lt_check(cublasStatus_t status, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS) fail_system("{}: cuBLASLt: {}", what, lt().GetStatusString(status));
}

template <auto kDestroy>
struct Destroy {
  template <typename T>
  void operator()(T* p) const {
    (lt().*kDestroy)(p);
  }
};
template <typename Handle, auto kDestroy>
using Owned = std::unique_ptr<std::remove_pointer_t<Handle>, Destroy<kDestroy>>;
using Layout = Owned<cublasLtMatrixLayout_t, &Functions::MatrixLayoutDestroy>;
using Description = Owned<cublasLtMatmulDesc_t, &Functions::MatmulDescDestroy>;
using Preference = Owned<cublasLtMatmulPreference_t, &Functions::MatmulPreferenceDestroy>;

template <typename T>
void set(cublasLtMatmulDesc_t description, cublasLtMatmulDescAttributes_t attribute, const T& value) {
  lt_check(lt().MatmulDescSetAttribute(description, attribute, &value, sizeof(value)), "matmul description");
}

Layout layout(cudaDataType_t type, std::int64_t rows, std::int64_t cols, std::int64_t stride) {
  cublasLtMatrixLayout_t made = nullptr;
  lt_check(lt().MatrixLayoutCreate(&made, type, static_cast<std::uint64_t>(rows),
                                   static_cast<std::uint64_t>(cols), stride),
           "matrix layout");
  return Layout(made);
}

}  // namespace

class CublasLt::State {
 public:
  State() {
    cublasLtHandle_t handle = nullptr;
    lt_check(lt().Create(&handle), "start");
    handle_.reset(handle);
  }

  void reserve(std::int64_t tokens, std::int64_t out, std::int64_t in) {
    grow(scales_, round_up(tokens, kTokenStep) * blocks_of(in) * 4);
    grow(weight_scales_, blocks_of(out) * round_up(blocks_of(in), kScaleStep) * 4);
    grow(codes_, kTokenStep * in);
    grow(result_, kTokenStep * round_up(out, 8) * 2);
    reserve_bias(out);
  }
  void reserve_bias(std::int64_t out) { grow(bias_, out * 2); }

  void run(const Fp8Gemm& g, cudaStream_t stream) {
    reserve(g.tokens, g.out, g.in);
    const float* weight_scales = g.weight_scales;
    const std::int64_t blocks = blocks_of(g.in);
    if (const std::int64_t stride = round_up(blocks, kScaleStep); stride != blocks) {
      const auto width = static_cast<std::size_t>(blocks) * 4;
      check(cudaMemcpy2DAsync(weight_scales_.data(), static_cast<std::size_t>(stride) * 4, weight_scales,
                              width, width, static_cast<std::size_t>(blocks_of(g.out)),
                              cudaMemcpyDeviceToDevice, stream),
            "weight scales");
      weight_scales = weight_scales_.data<float>();
    }
    if (g.bias != nullptr) round_to_bf16(g.bias, g.out, bias_.data<bf16>(), stream);
    const std::int64_t whole = g.tokens / kTokenStep * kTokenStep;
    const std::int64_t rest = g.tokens - whole;
    if (whole > 0) multiply_blocks(g, weight_scales, g.x, g.x_scales, whole, whole, g.y, g.y_stride, stream);
    if (rest == 0) return;
    // Codes of the missing tokens are what the buffer holds; their results are dropped.
    const std::int64_t stride = round_up(g.out, 8);
    check(cudaMemcpyAsync(codes_.data(), g.x + whole * g.in, static_cast<std::size_t>(rest * g.in),
                          cudaMemcpyDeviceToDevice, stream),
          "last tokens");
    multiply_blocks(g, weight_scales, codes_.data<std::uint8_t>(), g.x_scales + whole * scale_pitch(g.in),
                    rest, kTokenStep, result_.data<bf16>(), stride, stream);
    check(
        cudaMemcpy2DAsync(g.y + whole * g.y_stride, static_cast<std::size_t>(g.y_stride) * 2, result_.data(),
                          static_cast<std::size_t>(stride) * 2, static_cast<std::size_t>(g.out) * 2,
                          static_cast<std::size_t>(rest), cudaMemcpyDeviceToDevice, stream),
        "last tokens");
  }

  void run(const Bf16Gemm& g, cudaStream_t stream) {
    const bool exact = g.y_f32 != nullptr;
    const void* bias = g.bias;
    if (g.bias != nullptr && !exact) {
      reserve_bias(g.out);
      round_to_bf16(g.bias, g.out, bias_.data<bf16>(), stream);
      bias = bias_.data();
    }
    const Product product{g.tokens,
                          g.out,
                          g.in,
                          CUDA_R_16BF,
                          exact ? CUDA_R_32F : CUDA_R_16BF,
                          g.weight,
                          g.x,
                          exact ? static_cast<void*>(g.y_f32) : g.y,
                          g.y_stride == 0 ? g.out : g.y_stride,
                          bias};
    multiply(product, describe(product).get(), stream);
  }

 private:
  static void grow(DeviceBuffer& buffer, std::int64_t bytes) {
    if (buffer.bytes() < static_cast<std::size_t>(bytes))
      buffer = DeviceBuffer(static_cast<std::size_t>(bytes));
  }

  // cuBLASLt counts columns first: y[out, tokens] = weight[in, out]ᵀ · x[in, tokens].
  struct Product {
    std::int64_t tokens, out, in;
    cudaDataType_t operand_type, result_type;
    const void *weight, *x;
    void* y;
    std::int64_t y_stride;
    const void* bias;  // null, or [out] of the result's type
  };
  using Shape = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t, cudaDataType_t,
                           cudaDataType_t, bool>;

  static Description describe(const Product& p) {
    cublasLtMatmulDesc_t made = nullptr;
    lt_check(lt().MatmulDescCreate(&made, CUBLAS_COMPUTE_32F, CUDA_R_32F), "matmul description");
    Description description(made);
    set(made, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
    if (p.bias != nullptr) {
      set(made, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
      set(made, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, p.result_type);
      set(made, CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
    }
    return description;
  }

  void multiply_blocks(const Fp8Gemm& g, const float* weight_scales, const std::uint8_t* x,
                       const float* x_scales, std::int64_t scaled_tokens, std::int64_t tokens, bf16* y,
                       std::int64_t y_stride, cudaStream_t stream) {
    transpose_scales(x_scales, scaled_tokens, blocks_of(g.in), scale_pitch(g.in), scales_.data<float>(),
                     tokens, stream);
    const Product product{tokens,   g.out, g.in, CUDA_R_8F_E4M3, CUDA_R_16BF,
                          g.weight, x,     y,    y_stride,       g.bias == nullptr ? nullptr : bias_.data()};
    const Description description = describe(product);
    set(description.get(), CUBLASLT_MATMUL_DESC_A_SCALE_MODE, CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F);
    set(description.get(), CUBLASLT_MATMUL_DESC_B_SCALE_MODE, CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F);
    set(description.get(), CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, static_cast<const void*>(weight_scales));
    set(description.get(), CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, static_cast<const void*>(scales_.data()));
    multiply(product, description.get(), stream);
  }

  void multiply(const Product& p, cublasLtMatmulDesc_t description, cudaStream_t stream) {
    const auto a = layout(p.operand_type, p.in, p.out, p.in);
    const auto b = layout(p.operand_type, p.in, p.tokens, p.in);
    const auto d = layout(p.result_type, p.out, p.tokens, p.y_stride);
    const Shape shape{p.tokens, p.out, p.in, p.y_stride, p.operand_type, p.result_type, p.bias != nullptr};
    const auto [place, added] = algorithms_.try_emplace(shape);
    const bool fp8 = p.operand_type == CUDA_R_8F_E4M3;
    const std::uint32_t alignment = fp8 ? 256 : 16;  // of every operand, in bytes
    if (added && !choose(description, a.get(), b.get(), d.get(), alignment, place->second)) {
      algorithms_.erase(place);
      fail("cuBLASLt has no {} kernel for a [{}, {}] layer and {} tokens; use_deep_gemm: true has",
           fp8 ? "block-scaled FP8" : "bf16", p.out, p.in, p.tokens);
    }
    constexpr float kOne = 1;
    constexpr float kZero = 0;
    lt_check(lt().Matmul(handle_.get(), description, &kOne, p.weight, a.get(), p.x, b.get(), &kZero, p.y,
                         d.get(), p.y, d.get(), &place->second, workspace_.data(), kWorkspaceBytes, stream),
             "matmul");
  }

  bool choose(cublasLtMatmulDesc_t description, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
              cublasLtMatrixLayout_t d, std::uint32_t alignment, cublasLtMatmulAlgo_t& algorithm) {
    cublasLtMatmulPreference_t made = nullptr;
    lt_check(lt().MatmulPreferenceCreate(&made), "preference");
    const Preference preference(made);
    const auto prefer = [made](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
      lt_check(lt().MatmulPreferenceSetAttribute(made, attribute, &value, sizeof(value)), "preference");
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspaceBytes);
    // Parts of a sum are added in FP32 and in order, so that every run gives the same bits.
    prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
           static_cast<std::uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
    for (const auto attribute :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
      prefer(attribute, alignment);
    cublasLtMatmulHeuristicResult_t found{};
    int count = 0;
    const cublasStatus_t status =
        lt().MatmulAlgoGetHeuristic(handle_.get(), description, a, b, d, d, made, 1, &found, &count);
    if (status != CUBLAS_STATUS_SUCCESS || count == 0) return false;
    algorithm = found.algo;
    return true;
  }

  Owned<cublasLtHandle_t, &Functions::Destroy> handle_;
  DeviceBuffer workspace_{kWorkspaceBytes};
  DeviceBuffer scales_;         // the tokens', transposed
  DeviceBuffer weight_scales_;  // with rows of a multiple of kScaleStep
  DeviceBuffer codes_, result_, bias_;
  std::map<Shape, cublasLtMatmulAlgo_t> algorithms_;
};

CublasLt::CublasLt() : state_(std::make_unique<State>()) {}
CublasLt::~CublasLt() = default;

void CublasLt::fp8_gemm(const Fp8Gemm& gemm, cudaStream_t stream) {
  if (gemm.tokens > 0) state_->run(gemm, stream);
}

void CublasLt::bf16_gemm(const Bf16Gemm& gemm, cudaStream_t stream) {
  if (gemm.tokens > 0) state_->run(gemm, stream);
}

void CublasLt::reserve_bias(std::int64_t out) { state_->reserve_bias(out); }
void CublasLt::reserve(std::int64_t tokens, std::int64_t out, std::int64_t in) {
  state_->reserve(tokens, out, in);
}

}  // namespace octavo::cuda
