// A Vulkan layer by which Dawn, the WebGPU of LiteRT's GPU accelerator, takes
// Mesa's lavapipe on machines without a GPU. Dawn refuses a CPU device and
// wants two image-indexing features that lavapipe does not report: the layer
// reports a discrete GPU with both, and leaves the features out when a device
// is created. Everything else passes through. For one driver, which
// VK_ICD_FILENAMES names.
#if __has_include(<vulkan/vk_layer.h>)
#include <vulkan/vk_layer.h>
#include <vulkan/vulkan.h>

#include <cstring>

namespace {

// The functions of the next layer or the loader, looked up while an instance is
// created: later the loader answers with this layer's own.
PFN_vkGetInstanceProcAddr next_instance_proc;
PFN_vkGetDeviceProcAddr next_device_proc;
PFN_vkCreateDevice next_create_device;
PFN_vkGetPhysicalDeviceFeatures next_features;
PFN_vkGetPhysicalDeviceFeatures2 next_features_2;
PFN_vkGetPhysicalDeviceProperties next_properties;
PFN_vkGetPhysicalDeviceProperties2 next_properties_2;

template <typename Function>
void Resolve(VkInstance instance, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(next_instance_proc(instance, name));
}

void SetFeatures(VkPhysicalDeviceFeatures* features, VkBool32 value) {
  features->shaderSampledImageArrayDynamicIndexing = value;
  features->shaderStorageImageArrayDynamicIndexing = value;
}

// Returns the part of the loader's pNext chain that names the next layer.
template <typename Info>
Info* FindLink(const void* chain, VkStructureType type) {
  auto* info = static_cast<Info*>(const_cast<void*>(chain));
  while (info != nullptr &&
         !(info->sType == type && info->function == VK_LAYER_LINK_INFO)) {
    info = static_cast<Info*>(const_cast<void*>(info->pNext));
  }
  return info;
}

VKAPI_ATTR VkResult VKAPI_CALL
CreateInstance(const VkInstanceCreateInfo* info,
               const VkAllocationCallbacks* allocator, VkInstance* instance) {
  auto* link = FindLink<VkLayerInstanceCreateInfo>(
      info->pNext, VK_STRUCTURE_TYPE_LOADER_INSTANCE_CREATE_INFO);
  if (link == nullptr) return VK_ERROR_INITIALIZATION_FAILED;
  next_instance_proc = link->u.pLayerInfo->pfnNextGetInstanceProcAddr;
  link->u.pLayerInfo = link->u.pLayerInfo->pNext;
  PFN_vkCreateInstance create;
  Resolve(VK_NULL_HANDLE, "vkCreateInstance", &create);
  const VkResult result = create(info, allocator, instance);
  if (result != VK_SUCCESS) return result;
  Resolve(*instance, "vkCreateDevice", &next_create_device);
  Resolve(*instance, "vkGetPhysicalDeviceFeatures", &next_features);
  Resolve(*instance, "vkGetPhysicalDeviceFeatures2", &next_features_2);
  Resolve(*instance, "vkGetPhysicalDeviceProperties", &next_properties);
  Resolve(*instance, "vkGetPhysicalDeviceProperties2", &next_properties_2);
  return VK_SUCCESS;
}

VKAPI_ATTR void VKAPI_CALL
GetProperties(VkPhysicalDevice device, VkPhysicalDeviceProperties* properties) {
  next_properties(device, properties);
  properties->deviceType = VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU;
}

VKAPI_ATTR void VKAPI_CALL GetProperties2(
    VkPhysicalDevice device, VkPhysicalDeviceProperties2* properties) {
  next_properties_2(device, properties);
  properties->properties.deviceType = VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU;
}

VKAPI_ATTR void VKAPI_CALL GetFeatures(VkPhysicalDevice device,
                                       VkPhysicalDeviceFeatures* features) {
  next_features(device, features);
  SetFeatures(features, VK_TRUE);
}

VKAPI_ATTR void VKAPI_CALL GetFeatures2(VkPhysicalDevice device,
                                        VkPhysicalDeviceFeatures2* features) {
  next_features_2(device, features);
  SetFeatures(&features->features, VK_TRUE);
}

VKAPI_ATTR VkResult VKAPI_CALL
CreateDevice(VkPhysicalDevice physical_device, const VkDeviceCreateInfo* info,
             const VkAllocationCallbacks* allocator, VkDevice* device) {
  auto* link = FindLink<VkLayerDeviceCreateInfo>(
      info->pNext, VK_STRUCTURE_TYPE_LOADER_DEVICE_CREATE_INFO);
  if (link == nullptr) return VK_ERROR_INITIALIZATION_FAILED;
  next_device_proc = link->u.pLayerInfo->pfnNextGetDeviceProcAddr;
  link->u.pLayerInfo = link->u.pLayerInfo->pNext;
  VkDeviceCreateInfo changed = *info;
  VkPhysicalDeviceFeatures features;
  if (info->pEnabledFeatures != nullptr) {
    features = *info->pEnabledFeatures;
    SetFeatures(&features, VK_FALSE);
    changed.pEnabledFeatures = &features;
  }
  auto* extension =
      static_cast<VkBaseOutStructure*>(const_cast<void*>(info->pNext));
  for (; extension != nullptr; extension = extension->pNext) {
    if (extension->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2) {
      SetFeatures(
          &reinterpret_cast<VkPhysicalDeviceFeatures2*>(extension)->features,
          VK_FALSE);
    }
  }
  return next_create_device(physical_device, &changed, allocator, device);
}

VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL GetDeviceProcAddr(VkDevice device,
                                                           const char* name) {
  return next_device_proc(device, name);
}

VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL
GetInstanceProcAddr(VkInstance instance, const char* name) {
  const struct {
    const char* name;
    void* function;
  } replaced[] = {
      {"vkCreateDevice", reinterpret_cast<void*>(CreateDevice)},
      {"vkCreateInstance", reinterpret_cast<void*>(CreateInstance)},
      {"vkGetDeviceProcAddr", reinterpret_cast<void*>(GetDeviceProcAddr)},
      {"vkGetPhysicalDeviceFeatures", reinterpret_cast<void*>(GetFeatures)},
      {"vkGetPhysicalDeviceFeatures2", reinterpret_cast<void*>(GetFeatures2)},
      {"vkGetPhysicalDeviceProperties", reinterpret_cast<void*>(GetProperties)},
      {"vkGetPhysicalDeviceProperties2",
       reinterpret_cast<void*>(GetProperties2)},
  };
  for (const auto& entry : replaced) {
    if (std::strcmp(name, entry.name) == 0) {
      return reinterpret_cast<PFN_vkVoidFunction>(entry.function);
    }
  }
  return next_instance_proc == nullptr ? nullptr
                                       : next_instance_proc(instance, name);
}

}  // namespace

extern "C" __attribute__((visibility("default"))) VKAPI_ATTR VkResult VKAPI_CALL
vkNegotiateLoaderLayerInterfaceVersion(VkNegotiateLayerInterface* interface) {
  interface->loaderLayerInterfaceVersion = 2;
  interface->pfnGetInstanceProcAddr = GetInstanceProcAddr;
  interface->pfnGetDeviceProcAddr = GetDeviceProcAddr;
  interface->pfnGetPhysicalDeviceProcAddr = nullptr;
  return VK_SUCCESS;
}

#endif  // __has_include(<vulkan/vk_layer.h>)
